"""Average precision, by the rules of PASCAL VOC and of COCO (numpy only)."""
