"""kexec_file_load and kexec_load: from the files to the image in the crash region."""
