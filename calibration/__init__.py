"""From data to numbers: records, thresholds with a certificate, saver search."""
