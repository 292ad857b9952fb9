"""The agents' side of the controller: their streams, what they are told, what they report."""
