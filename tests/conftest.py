"""Settings for every test: no test's outcome depends on how fast the machine is."""

from hypothesis import HealthCheck, settings

settings.register_profile("pellucid", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pellucid")
