-- Each masked value of each accepted message: its original and its token, for the functions that seal and erase.
{{ config(grants={'select': ['pipeline_owner']}) }}

select message_id, load_id, 'ip' as kind, regexp_replace(ip, '^raw:', '') as original, masked_ip as token, mask_key_version
from {{ ref('base_sqs__logins') }}
where reason is null
union all
select message_id, load_id, 'device_id' as kind, device_id as original, masked_device_id as token, mask_key_version
from {{ ref('base_sqs__logins') }}
where reason is null
