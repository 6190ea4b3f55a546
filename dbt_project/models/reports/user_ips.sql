-- One row per user and address; what stands for "none" is not one.
{{ users_with_their('ip') }}
