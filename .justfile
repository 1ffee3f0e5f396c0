# Recipes for daily work: each calls an existing script. `just --list` shows them.

# List the recipes.
default:
    @just --list

# Start both services with a Redis and the sandbox, and show them at work.
quickstart *arguments:
    ./deploy/quickstart.sh {{ arguments }}

# Run all tests, or those whose name contains the argument.
test *arguments:
    ./deploy/test.sh {{ arguments }}

# Run all tests in their large sizes. Takes an hour.
soak:
    ./deploy/test.sh --soak

# Format the code.
format:
    cargo fmt

# Run the lints of Rust code, without the tests.
lint:
    cargo fmt --check
    cargo clippy --locked --workspace --all-targets -- -D warnings

# Check images, manifests, dashboards, alerts and dependencies.
check:
    ./deploy/check.sh

# Evaluate the dashboard and the alerts with a real Prometheus.
live:
    ./deploy/dashboards/live.sh

# Run everything that must pass before a change is merged.
ci:
    ./.ci/run

# Measure the performance. Needs a quiet machine.
bench *arguments:
    ./deploy/bench.sh {{ arguments }}

# Build the images and run them. Needs a container engine.
images *arguments:
    ./deploy/images/test.sh {{ arguments }}
