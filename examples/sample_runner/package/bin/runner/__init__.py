"""The sample runner: behaves as actions/runner does, and needs no GitHub."""
