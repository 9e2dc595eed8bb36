"""Models: what turns images into logits."""

from robust_train.models import cifar_resnet, convstem, lgn, small_cnn, timm, v1

__all__ = ["cifar_resnet", "convstem", "lgn", "small_cnn", "timm", "v1"]
