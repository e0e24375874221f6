"""The paper's tables: a file per target set, a row of its table per arm."""
