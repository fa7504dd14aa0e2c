"""The small model that comes with the project: how it is trained from scratch.

    python -m dualfocus_lmms.train.nano --seed 0 --output runs/nano

Three stages, each resumable. `pretrain_vision` teaches the vision tower what is where in scenes and in
crops. `base` makes a plain vision-language model of it: questions about the whole image, phrases to
boxes, boxes to phrases. The last stage is `dualfocus train` itself with the recipe `nano`. The first two
exist because a model of this size has no pre-trained parts to start from; nothing of them is needed to
train a real one.

On a GPU `timed` makes the base stage in a given time, from a table of questions that lies on the device.
"""
