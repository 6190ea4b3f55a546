-- One row per queue: how the pipeline does there now. Counts are of the loads of the last 24 hours, so that the cost does
-- not grow with the history. It reads the ledger and ids beside raw's bodies with the rights of dbt's role, its owner.
{{ config(grants={'+select': ['monitor']}, meta={'read_as_owner': true}) }}

with

declared as (

    {%- for event, it in declared_events().items() -%}
    {%- set last_event = loop.last -%}
    {%- for queue in it.queues %}
    select {{ quoted_list([queue]) }}::text as queue, '{{ event }}' as event_type
    {%- if not (loop.last and last_event) %} union all{% endif -%}
    {%- endfor -%}
    {%- endfor %}

),

ledger as (

    select * from {{ source('raw', 'loads') }}

),

-- not min(load_id), for which the planner walks the ledger from its beginning
first_load as (

    select load_id as first_load_id
    from ledger
    where loaded_at > now() - interval '24 hours'
    order by loaded_at
    limit 1

),

first_load_of_week as (

    select load_id as first_load_id
    from ledger
    where loaded_at > now() - interval '192 hours'
    order by loaded_at
    limit 1

),

last_load as (

    select coalesce(max(load_id), 0) as last_taken_load_id from {{ ref('int_messages__masked') }}

),

loads as (

    select
        ledger.*,
        ledger.load_id <= last_load.last_taken_load_id as is_taken
    from ledger
    cross join last_load
    left join first_load on true
    where ledger.load_id >= first_load.first_load_id or ledger.load_id > last_load.last_taken_load_id

),

accepted as (

    select
        logins.load_id,
        count(*) as accepted
    from (
        {%- for it in declared_events().values() %}
        select load_id from {{ ref(it.model) }}
        {%- if not loop.last %} union all{% endif %}
        {%- endfor %}
    ) as logins
    inner join first_load on logins.load_id >= first_load.first_load_id
    group by logins.load_id

),

rejected as (

    select
        messages.load_id,
        messages.reason,
        count(*) as rejected
    from {{ ref('rejected_messages') }} as messages
    inner join first_load on messages.load_id >= first_load.first_load_id
    group by messages.load_id, messages.reason

),

rejected_by_load as (

    select
        load_id,
        sum(rejected) as rejected
    from rejected
    group by load_id

),

rejected_by_reason as (

    select
        queue,
        jsonb_object_agg(reason, rejected) as rejected_by_reason
    from (
        select
            loads.queue,
            rejected.reason,
            sum(rejected.rejected) as rejected
        from rejected
        inner join loads on rejected.load_id = loads.load_id
        group by loads.queue, rejected.reason
    ) as by_reason
    group by queue

),

week_before as (

    select
        ledger.queue,
        sum(ledger.landed) as landed
    from ledger
    inner join first_load_of_week on ledger.load_id >= first_load_of_week.first_load_id
    left join first_load on true
    where ledger.load_id < coalesce(first_load.first_load_id, 9223372036854775807)
    group by ledger.queue

),

rejected_week_before as (

    select
        messages.queue,
        count(*) as rejected
    from {{ ref('rejected_messages') }} as messages
    inner join first_load_of_week on messages.load_id >= first_load_of_week.first_load_id
    left join first_load on true
    where messages.load_id < coalesce(first_load.first_load_id, 9223372036854775807)
    group by messages.queue

),

erased as (

    select
        tombstones.load_id,
        count(*) as erased
    from {{ source('privacy', 'erased_messages') }} as tombstones
    inner join loads on tombstones.load_id = loads.load_id
    group by tombstones.load_id

),

by_load as (

    select
        loads.*,
        coalesce(accepted.accepted, 0) as accepted,
        coalesce(rejected_by_load.rejected, 0) as rejected,
        coalesce(erased.erased, 0) as erased,
        case when loads.is_taken then loads.landed - coalesce(erased.erased, 0) else 0 end
        - coalesce(accepted.accepted, 0) - coalesce(rejected_by_load.rejected, 0) as unaccounted
    from loads
    left join accepted on loads.load_id = accepted.load_id
    left join rejected_by_load on loads.load_id = rejected_by_load.load_id
    left join erased on loads.load_id = erased.load_id

),

waiting as (

    select
        queue,
        sum(landed - erased) as untransformed,
        min(loaded_at) as oldest_landed_at
    from by_load
    where not is_taken and landed > erased
    group by queue

),

of_one_day as (

    select
        by_load.queue,
        sum(by_load.received) as received,
        sum(by_load.landed) as landed,
        sum(by_load.duplicates) as duplicates,
        sum(by_load.accepted) as accepted,
        sum(by_load.rejected) as rejected,
        sum(by_load.erased) as erased,
        -- a row too many in one load does not make up for a message lost from another
        coalesce(sum(by_load.unaccounted) filter (where by_load.unaccounted > 0), sum(by_load.unaccounted))
            as unaccounted
    from by_load
    inner join first_load on by_load.load_id >= first_load.first_load_id
    group by by_load.queue

),

newest_loads as (

    select
        queue,
        max(load_id) as load_id
    from ledger
    where landed > 0
    group by queue

),

newest_sent as (

    select
        messages.load_id,
        min(messages.sent_at) as first_sent_at
    from {{ source('raw', 'sqs_messages') }} as messages
    inner join newest_loads on messages.load_id = newest_loads.load_id
    group by messages.load_id

),

newest as (

    select
        newest_loads.queue,
        ledger.loaded_at as newest_load_at,
        ledger.loaded_at - newest_sent.first_sent_at as sent_to_landed
    from newest_loads
    inner join ledger on newest_loads.load_id = ledger.load_id
    left join newest_sent on newest_loads.load_id = newest_sent.load_id

),

queues as (

    select queue from declared
    union
    select queue from newest
    union
    select queue from of_one_day

),

health as (

    select
        queues.queue,
        declared.event_type,

        -- times
        newest.newest_load_at,
        newest.sent_to_landed,
        coalesce(now() - waiting.oldest_landed_at, interval '0') as landed_to_analytics,

        -- counts
        coalesce(waiting.untransformed, 0)::bigint as untransformed,
        coalesce(of_one_day.received, 0)::bigint as received,
        coalesce(of_one_day.landed, 0)::bigint as landed,
        coalesce(of_one_day.duplicates, 0)::bigint as duplicates,
        coalesce(of_one_day.accepted, 0)::bigint as accepted,
        coalesce(of_one_day.rejected, 0)::bigint as rejected,
        coalesce(of_one_day.erased, 0)::bigint as erased,
        coalesce(of_one_day.unaccounted, 0)::bigint as unaccounted,
        coalesce(week_before.landed, 0)::bigint as landed_week_before,
        coalesce(rejected_week_before.rejected, 0)::bigint as rejected_week_before,
        coalesce(rejected_by_reason.rejected_by_reason, '{}') as rejected_by_reason
    from queues
    left join declared on queues.queue = declared.queue
    left join newest on queues.queue = newest.queue
    left join waiting on queues.queue = waiting.queue
    left join of_one_day on queues.queue = of_one_day.queue
    left join week_before on queues.queue = week_before.queue
    left join rejected_week_before on queues.queue = rejected_week_before.queue
    left join rejected_by_reason on queues.queue = rejected_by_reason.queue

)

select
    *,
    analytics.rejections_jumped(accepted, rejected, landed_week_before, rejected_week_before) as rejections_jumped
from health
