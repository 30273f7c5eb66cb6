"""What puts a picture into words: one module a captioner, all behind ``base.Captioner``, listed in ``registry``."""
