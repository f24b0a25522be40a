# syntax=docker/dockerfile:1
# Two stages: the first installs the locked dependencies (every file by its hash), the second runs them and can build nothing.

ARG PYTHON=3.14

FROM python:${PYTHON}-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /src
RUN python -m venv --without-pip /opt/meshguard
COPY requirements.lock ./
RUN pip --python /opt/meshguard/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY meshguard ./meshguard
# The package itself is copied, not built: no build back end has to be fetched without a hash.
RUN site="$(/opt/meshguard/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
 && cp -r meshguard "$site/" \
 && printf '#!/opt/meshguard/bin/python\nimport sys\nfrom meshguard.cli.main import main\nsys.exit(main())\n' > /opt/meshguard/bin/meshguard \
 && chmod 0755 /opt/meshguard/bin/meshguard \
 && /opt/meshguard/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash "$site" \
 && /opt/meshguard/bin/meshguard --version

FROM python:${PYTHON}-slim
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="meshguard" \
      org.opencontainers.image.description="A security proxy for service meshes: mTLS identity, per-request policy, field-level encryption, decision records" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# No package manager for Python in the final image; the proxy is uid 65532 and owns only its state directory.
RUN python -m pip uninstall -y pip \
 && rm -rf /usr/local/lib/python3*/ensurepip \
 && groupadd --gid 65532 meshguard \
 && useradd --uid 65532 --gid 65532 --home-dir /var/lib/meshguard --no-create-home --shell /usr/sbin/nologin meshguard \
 && install -d -o 65532 -g 65532 -m 0700 /var/lib/meshguard
COPY --from=build /opt/meshguard /opt/meshguard
ENV PATH=/opt/meshguard/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PYTHONSAFEPATH=1
USER 65532:65532
WORKDIR /var/lib/meshguard
# Runs with a read-only root: docker run --read-only --tmpfs /tmp -v meshguard-state:/var/lib/meshguard
VOLUME ["/var/lib/meshguard"]
EXPOSE 8443 9901
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=5s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ.get('MESHGUARD_ADMIN_PORT', '9901') + '/healthz', timeout=2)"]
ENTRYPOINT ["meshguard"]
CMD ["serve", "--config", "/etc/meshguard/meshguard.yaml"]
