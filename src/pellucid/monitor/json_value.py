"""The values of JSON, as QMP has them."""

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
