"""The page of a run or of a comparison, and the table it ends with."""
