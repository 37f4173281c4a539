"""ResNets of torchvision, timm, Hugging Face and the public CIFAR nets: read, recognised, written; without PyTorch."""
