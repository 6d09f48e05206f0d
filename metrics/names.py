"""Names of the metrics, in the order of tables and files. Needs no package, so that command lines know them at once."""

PIXEL = ("auroc_px", "f1_px", "ap_px", "aupro", "aupro_200", "iou_px", "threshold_px")
IMAGE = ("auroc_sp", "f1_sp", "ap_sp")
VALIDATION_METRICS = tuple(name for name in PIXEL + IMAGE if name != "threshold_px")  # which is no quality
