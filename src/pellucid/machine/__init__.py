"""The virtual PC: boards, devices, firmware tables, guest loaders and character devices."""
