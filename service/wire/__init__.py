"""What goes over the wire, shared by server and client: JSON schemas and the encoding of batches.

Imports ``errors`` and ``mixer``. Start with ``schemas``, then ``batches``.
"""
