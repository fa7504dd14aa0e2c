"""lmms-eval tasks: one folder of YAML a benchmark, shared readers and scorers.

    lmms-eval --model dualfocus --tasks df_pope ...

The YAML says where documents come from and which functions read and score them. Nothing here knows a model.
"""
