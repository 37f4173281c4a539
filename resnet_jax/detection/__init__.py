"""Detection (section 4.3, appendices A and B): Faster R-CNN on the library's own nets, its data and its measures."""
