# Prefect's server and MLflow's, without PyTorch. Not their publishers' images: those do not have our constraints (a
# newer FastAPI or SQLAlchemy has broken Prefect before), and MLflow's has no driver for PostgreSQL or S3.
FROM python:3.11.15-slim-bookworm@sha256:d29f48a31a8b408ed19272ca1e7b10ebae13b240a27e862d3d4217c528e2e0c3 AS base
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

FROM base AS builder
ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
WORKDIR /build
COPY constraints.txt docker/servers.txt ./
RUN pip install --only-binary :all: -c constraints.txt -r servers.txt

FROM base
RUN useradd --uid 10001 --create-home servers
COPY --from=builder /opt/venv /opt/venv
COPY docker/mlflow_auth.ini docker/make_bucket.py /etc/mapet/
# Prefect writes its pages anew at every start, by default among its own files, which belong to root.
ENV DO_NOT_TRACK=true \
    GIT_PYTHON_REFRESH=quiet \
    MLFLOW_AUTH_CONFIG_PATH=/etc/mapet/mlflow_auth.ini \
    PREFECT_SERVER_UI_STATIC_DIRECTORY=/home/servers/prefect-ui
WORKDIR /home/servers
USER 10001
