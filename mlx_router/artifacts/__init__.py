"""Router versions on disk: published whole, verified by hash, reversible."""
