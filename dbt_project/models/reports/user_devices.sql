-- One row per user and device; what stands for "none" is not one.
{{ users_with_their('device_id') }}
