"""CoOp: a learned context before fixed names."""
