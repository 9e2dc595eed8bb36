"""python -m robust_train RUN.yaml [key=value ...]: a run in this process, without Ray or DeepSpeed."""
