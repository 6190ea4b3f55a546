-- Every landed message, judged: what it says in the open, in canonical plain form, and masked. For masker's eyes only,
-- and for the functions of privacy that seal and erase what is plain: they are the owner of raw's.
{{ config(grants={'select': ['pipeline_owner']}) }}

with

messages as (

    select * from {{ source('raw', 'sqs_messages') }}

),

judged as (

    select
        messages.*,
        parsed.event,
        verdict.reason
    from messages
    -- unnest keeps the planner from copying the expression, and with it the parsing, into every column below
    cross join lateral unnest(array[masking.parse_json(messages.body)]) as parsed (event)
    cross join lateral unnest(array[{{ rejection_reason('parsed.event', 'messages.sent_at') }}]) as verdict (reason)

),

plain as (

    select
        *,
        case when reason is null then masking.canonical_ip(event ->> 'ip') end as ip,
        case when reason is null then masking.canonical_device_id(event ->> 'device_id') end as device_id
    from judged

),

masked as (

    select
        -- ids
        message_id,
        queue,
        load_id,

        -- times
        sent_at,
        loaded_at,

        -- the verdict
        reason,
        octet_length(body) as body_bytes,

        -- open fields, of accepted messages only
        case when reason is null then event ->> 'user_id' end as user_id,
        case when reason is null then event ->> 'device_type' end as device_type,
        case when reason is null and masking.canonical_text(event ->> 'locale') <> '' then event ->> 'locale' end
            as locale,
        case when reason is null then {{ pack_app_version("(event ->> 'app_version')") }} end as app_version,

        -- plain
        ip,
        device_id,

        -- masked
        {{ mask('ip', kind='ip') }} as masked_ip,
        {{ mask('device_id', kind='device_id') }} as masked_device_id,
        {{ mask_key_version() }} as mask_key_version
    from plain

)

select * from masked
