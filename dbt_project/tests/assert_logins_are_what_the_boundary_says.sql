-- What is published of each message that is still in raw is what the boundary says of it: tokens and open values alike.
{{ config(tags=['full_scan']) }}

select count(*) as differing
from {{ ref('user_logins') }} as published
inner join {{ as_owner(ref('stg_sqs__logins')) }} as boundary on published.message_id = boundary.message_id
where
    boundary.reason is not null
    or (
        published.user_id, published.device_type, published.masked_ip, published.masked_device_id, published.locale,
        published.app_version, published.create_date, published.mask_key_version, published.load_id
    ) is distinct from (
        boundary.user_id, boundary.device_type, boundary.masked_ip, boundary.masked_device_id, boundary.locale,
        boundary.app_version, (boundary.sent_at at time zone 'utc')::date, boundary.mask_key_version, boundary.load_id
    )
having count(*) > 0
