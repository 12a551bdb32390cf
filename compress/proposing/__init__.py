"""`pare init`: a first recipe for a model, from what its folder, its data and this machine say. What does not fit is found by planning it."""
