"""What the operating system offers, each part behind one thin adapter; nothing here decides anything."""
