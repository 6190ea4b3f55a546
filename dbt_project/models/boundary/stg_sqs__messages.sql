-- The boundary: all that anybody but masker sees of a message. A list, without the plain columns.
select
    message_id,
    queue,
    load_id,
    sent_at,
    loaded_at,
    event_type,
    reason,
    body_bytes,
    subject,
    {{ declared_columns() | join(',\n    ') }},
    mask_key_version
from {{ ref('base_sqs__messages') }}
