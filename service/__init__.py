"""The HTTP service: weights and batches for trainers on other machines.

Imports ``mixer``; only ``andrea`` imports it. ``service.client`` is what trainers import and needs no web framework;
``service.app.create_app`` builds the server.
"""
