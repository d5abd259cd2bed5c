"""From folders of CTs to batches on the device."""
