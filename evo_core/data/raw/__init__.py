"""Raw files to documents: found by one listing, unpacked, cut into records, whatever form they are in."""
