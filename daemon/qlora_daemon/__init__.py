"""The daemon: inbox, intake, dispatcher and supervisor."""
