"""Looks at disk images that strangers made, before any tool does. Pure Python over bounded reads.

oslo.utils' format_inspector (OpenStack) asks the same questions of headers. This one goes on where that stops: it
walks a qcow2's tables, so that nothing in them leads outside the file, twice to one place, or further than a bound.
"""
