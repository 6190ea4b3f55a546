-- Every landed message, judged: what it says in the open, in canonical plain form, and masked. For masker's eyes only,
-- and for the functions of privacy that seal and erase what is plain: they are the owner of raw's.
-- One select and no with: each unnest keeps the planner from copying its expression, and with it the parsing, into
-- every column; and Citus sends it to the workers as it is, so that they mask, and nothing plain travels.
{{ config(grants={'select': ['pipeline_owner']}) }}

select
    -- ids
    messages.message_id,
    messages.queue,
    messages.load_id,

    -- times
    messages.sent_at,
    messages.loaded_at,

    -- the verdict
    verdict.reason,
    octet_length(messages.body) as body_bytes,

    -- open fields, of accepted messages only
    case when verdict.reason is null then parsed.event ->> 'user_id' end as user_id,
    case when verdict.reason is null then parsed.event ->> 'device_type' end as device_type,
    case
        when verdict.reason is null and masking.canonical_text(parsed.event ->> 'locale') is not null
            then parsed.event ->> 'locale'
    end as locale,
    case when verdict.reason is null then {{ pack_app_version("(parsed.event ->> 'app_version')") }} end as app_version,

    -- plain
    plain_ip.ip,
    plain_device_id.device_id,

    -- masked
    {{ mask('plain_ip.ip', kind='ip') }} as masked_ip,
    {{ mask('plain_device_id.device_id', kind='device_id') }} as masked_device_id,
    {{ mask_key_version() }} as mask_key_version
from {{ source('raw', 'sqs_messages') }} as messages
cross join lateral unnest(array[masking.parse_json(messages.body)]) as parsed (event)
cross join lateral unnest(array[{{ rejection_reason('parsed.event', 'messages.sent_at') }}]) as verdict (reason)
cross join lateral unnest(
    array[case when verdict.reason is null then masking.canonical_address(parsed.event ->> 'ip') end]
) as plain_ip (ip)
cross join lateral unnest(
    array[case when verdict.reason is null then masking.canonical_identifier(parsed.event ->> 'device_id') end]
) as plain_device_id (device_id)
