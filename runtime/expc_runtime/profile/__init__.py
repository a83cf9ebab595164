"""What is true of a stage's data, for `expc profile`: columns, splits, repeated rows, floors."""
