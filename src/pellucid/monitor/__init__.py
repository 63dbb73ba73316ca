"""The monitors through which people and programs watch and steer a machine. So far: HMP, for people."""
