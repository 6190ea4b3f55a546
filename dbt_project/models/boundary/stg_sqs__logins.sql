-- The boundary: all that anybody but masker sees of a message. A fixed list, without the plain columns.
select
    message_id,
    queue,
    load_id,
    sent_at,
    loaded_at,
    reason,
    body_bytes,
    user_id,
    device_type,
    locale,
    app_version,
    masked_ip,
    masked_device_id,
    mask_key_version
from {{ ref('base_sqs__logins') }}
