"""Rule passes: a model captured as a graph, and run backwards by rules."""
