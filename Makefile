# The commands of this project; `make` lists them.
.PHONY: help setup test unit lint clusters playground playground-down bench image
.DEFAULT_GOAL := help

help: ## List the commands
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what this machine lacks
	@scripts/setup

test: setup ## Run all tests, on real clusters too
	@scripts/test

unit: setup ## Run the unit tests only
	@scripts/test --unit

lint: ## Format check and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

clusters: setup ## Keep clusters running for the inner loop, see CONTRIBUTING.md
	@cargo build --quiet --locked -p tensile-virtual-node --bin virtual-node
	@cargo run --quiet --locked -p tensile-e2e --bin clusters

playground: setup ## Bring up an upper and two lower clusters with a workload across them
	@cargo build --quiet --release --locked -p tensile-virtual-node --bin virtual-node
	@cargo run --quiet --release --locked -p tensile-e2e --bin playground -- up $(ARGS)

playground-down: ## Remove what a playground left
	@cargo run --quiet --release --locked -p tensile-e2e --bin playground -- down

bench: setup ## Measure; for instance: make bench ARGS="offload --pods 100,1000"
	@cargo build --quiet --release --locked -p tensile-virtual-node --bin virtual-node
	@cargo run --quiet --release --locked -p tensile-e2e --bin bench -- $(ARGS)

image: setup ## Build the virtual-node's container image; for instance: make image NAME=REGISTRY/virtual-node:0.1.0
	@scripts/image $(NAME)
