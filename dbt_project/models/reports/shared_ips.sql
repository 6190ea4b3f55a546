-- Addresses that several users logged in from; what stands for "none" is not one.
{{ shared_by_users('ip') }}
