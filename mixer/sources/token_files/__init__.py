"""Files of token ids that other tools wrote, memory-mapped as they are.

``opening.open_token_files`` finds the files of a source and reads what they say of themselves; ``rows.TokenFileRows``
are the rows of one source; a module for each format says where its ids lie.
"""
