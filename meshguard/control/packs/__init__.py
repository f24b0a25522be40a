"""Control packs: named sets of controls, each backed by checks of configuration and policy and by tests of single requests.

`catalogue` lists the packs, `judge` puts a configuration and a policy to them, `citing` makes what each request is judged by. Loaded only
where a pack is named. It knows what a control asks for and how that shows here; it never changes what is allowed.
"""
