-- One row: how the pipeline does now. Counts are of the loads of the last 24 hours, so that the cost does not grow with
-- the history. It reads the ledger and ids beside raw's bodies with the rights of dbt's role, its owner.
{{ config(grants={'+select': ['monitor']}, meta={'read_as_owner': true}) }}

with

window_of_loads as (

    select
        (
            -- not min(load_id), for which the planner walks the ledger from its beginning
            select load_id from {{ source('raw', 'loads') }}
            where loaded_at > now() - interval '24 hours'
            order by loaded_at
            limit 1
        ) as first_load_id,
        coalesce(max(load_id), 0) as last_taken_load_id
    from {{ ref('int_messages__masked') }}

),

newest_load as (

    select
        load_id,
        loaded_at
    from {{ source('raw', 'loads') }}
    where load_id = (select max(load_id) from {{ source('raw', 'loads') }} where landed > 0)

),

queue_lag as (

    select max(messages.loaded_at - messages.sent_at) as sent_to_landed
    from {{ source('raw', 'sqs_messages') }} as messages
    inner join newest_load on messages.load_id = newest_load.load_id

),

loads as (

    select
        coalesce(sum(loads.received), 0) as received,
        coalesce(sum(loads.landed), 0) as landed,
        coalesce(sum(loads.duplicates), 0) as duplicates,
        coalesce(sum(loads.landed) filter (where loads.load_id <= last_taken_load_id), 0) as taken
    from window_of_loads
    inner join {{ source('raw', 'loads') }} as loads on loads.load_id >= first_load_id

),

waiting as (

    select
        loads.loaded_at,
        loads.landed - count(erased.message_id) as messages
    from window_of_loads
    inner join {{ source('raw', 'loads') }} as loads
        on window_of_loads.last_taken_load_id < loads.load_id and loads.landed > 0
    left join {{ source('privacy', 'erased_messages') }} as erased on loads.load_id = erased.load_id
    group by loads.load_id, loads.loaded_at, loads.landed

),

not_taken as (

    select
        coalesce(sum(messages), 0) as untransformed,
        coalesce(now() - min(loaded_at), interval '0') as landed_to_analytics
    from waiting
    where messages > 0

),

accepted as (

    select count(*) as accepted
    from window_of_loads
    inner join {{ ref('user_logins') }} as logins on logins.load_id >= first_load_id

),

newest_login as (

    select mask_key_version
    from {{ ref('user_logins') }}
    order by load_id desc
    limit 1

),

rejected as (

    select
        coalesce(sum(messages), 0) as rejected,
        coalesce(jsonb_object_agg(reason, messages), '{}') as rejected_by_reason
    from (
        select
            rejected.reason,
            count(*) as messages
        from window_of_loads
        inner join {{ ref('rejected_messages') }} as rejected on rejected.load_id >= first_load_id
        group by rejected.reason
    ) as by_reason

),

erased as (

    select count(*) as erased
    from window_of_loads
    inner join {{ source('privacy', 'erased_messages') }} as erased
        on erased.load_id >= first_load_id and erased.load_id <= last_taken_load_id

)

select
    -- times
    now() as measured_at,
    newest_load.loaded_at as newest_load_at,
    queue_lag.sent_to_landed,
    not_taken.landed_to_analytics,

    -- counts
    not_taken.untransformed::bigint as untransformed,
    loads.received::bigint as received,
    loads.landed::bigint as landed,
    loads.duplicates::bigint as duplicates,
    accepted.accepted,
    rejected.rejected::bigint as rejected,
    erased.erased,
    (loads.taken - accepted.accepted - rejected.rejected - erased.erased)::bigint as unaccounted,
    rejected.rejected_by_reason,

    -- the key
    newest_login.mask_key_version
from loads
cross join not_taken
cross join accepted
cross join rejected
cross join erased
cross join queue_lag
left join newest_load on true
left join newest_login on true
