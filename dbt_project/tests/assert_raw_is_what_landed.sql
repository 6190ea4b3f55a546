-- Nothing leaves raw unseen: what the ledger says has landed since the last purge is in raw, or erased.

with

kept as (

    select
        load_id,
        landed
    from {{ source('raw', 'loads') }}
    where loaded_at >= (select coalesce(max(landed_before), '-infinity') from {{ source('raw', 'purges') }})

),

landed as (

    select coalesce(sum(landed), 0) as landed from kept

),

in_raw as (

    select count(*) as in_raw
    from {{ source('raw', 'sqs_messages') }} as messages
    inner join kept on messages.load_id = kept.load_id

),

erased as (

    select count(*) as erased
    from {{ source('privacy', 'erased_messages') }} as erased_messages
    inner join kept on erased_messages.load_id = kept.load_id

)

select * from landed
cross join in_raw
cross join erased
where landed <> in_raw + erased
