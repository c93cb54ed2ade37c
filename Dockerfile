# The service in a small image. README.md, "In a container", says how to run it.

FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
# What was downloaded and compiled stays in caches of the builder, outside every image; the sources are
# touched so that none counts as older than what another checkout left there. Names stay in the binary for
# backtraces; line tables, ten times as large, do not.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    find src config -type f -exec touch {} + \
    && CARGO_PROFILE_RELEASE_STRIP=debuginfo \
    cargo build --release --locked --package subsidy-pos --bin subsidy-pos \
    && install -D target/release/subsidy-pos /out/subsidy-pos

FROM docker.io/library/debian:bookworm-slim
RUN groupadd --system --gid 10001 subsidy-pos \
    && useradd --uid 10001 --gid subsidy-pos --no-create-home --home-dir /var/lib/subsidy-pos \
       --shell /usr/sbin/nologin subsidy-pos \
    && install --directory --owner subsidy-pos --group subsidy-pos --mode 0700 /var/lib/subsidy-pos
COPY LICENSE /usr/share/doc/subsidy-pos/LICENSE
COPY packaging/healthcheck /usr/local/bin/healthcheck
COPY --from=build /out/subsidy-pos /usr/local/bin/subsidy-pos

# These three override a configuration file, so that ports and data are where the image says.
ENV SUBSIDY_POS__SERVER__LISTEN=0.0.0.0:8080 \
    SUBSIDY_POS__SERVER__OPERATIONS_LISTEN=0.0.0.0:9090 \
    SUBSIDY_POS__LEDGER__DATA_DIR=/var/lib/subsidy-pos
USER subsidy-pos
VOLUME /var/lib/subsidy-pos
EXPOSE 8080 9090
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s CMD ["/usr/local/bin/healthcheck"]
ENTRYPOINT ["/usr/local/bin/subsidy-pos"]
CMD ["serve", "--config", "/etc/subsidy-pos/config.toml"]
