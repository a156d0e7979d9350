"""Graphs as YAML files.

A file is YAML 1.2 with one document. Text is text: ``no``, ``on`` and ``12:30`` are not changed
into anything else; only ``true``, ``false``, ``null``, ``~`` and numbers have a meaning of their
own, and quotes take it away. Tags and merge keys (``<<``) are errors. An alias (``*name``) repeats
what its anchor (``&name``) marks.

``${VAR}`` stands for an environment variable, ``${VAR:-text}`` has a default where it is not set
or empty, ``${VAR:?message}`` says what to do then, and ``$${`` is a literal ``${``. Variables are
replaced in values only, never in keys, and after the file was parsed, so that their text cannot
change its structure. A value without quotes is read again when its variables are replaced:
``port: ${PORT}`` is a number if ``PORT`` is. Within ``{}`` and ``[]`` such a value needs quotes.
Neither values of variables nor secret options appear in messages.
"""
