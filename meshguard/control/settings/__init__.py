"""The configuration document: one model for each section, named as the package it configures.

Knows the keys, their defaults (the strict profile) and what must agree between sections. Opens nothing but the document itself;
must not know how a section is used.
"""
