"""What a page is: keys, record format and checksum, layout of shared memory."""
