# What developers run. `just` lists it.

rooms := "core adapters plugins tests benchmarks examples"

default:
    @just --list

# style, types and the laws of the house
lint:
    ruff check {{rooms}}
    ruff format --check {{rooms}}
    mypy
    lint-imports

# mends what can be mended
format:
    ruff format {{rooms}}
    ruff check --fix {{rooms}}

test *arguments:
    python -m pytest {{arguments}}

# measures everything anew (half an hour on a quiet machine) and writes the README's tables
bench:
    python -m benchmarks.listing
    python -m benchmarks.speed
    python -m benchmarks.memory
    python -m benchmarks.layers
    for what in conservation speed composites memory; do python -m benchmarks.relevance $what; done
    for what in completeness speed; do python -m benchmarks.differences $what; done
    python -m benchmarks.tables
