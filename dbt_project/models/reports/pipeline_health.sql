-- One row: how the pipeline does now, over all queues (queue_health has each).
{{ config(grants={'+select': ['monitor']}, meta={'read_as_owner': true}) }}

with

queues as (

    select * from {{ ref('queue_health') }}

),

reasons as (

    select coalesce(jsonb_object_agg(reason, messages), '{}') as rejected_by_reason
    from (
        select
            by_reason.key as reason,
            sum(by_reason.value::bigint) as messages
        from queues
        cross join lateral jsonb_each_text(queues.rejected_by_reason) as by_reason
        group by by_reason.key
    ) as counted

),

newest_login as (

    select mask_key_version
    from {{ ref('int_messages__masked') }}
    where is_accepted
    order by load_id desc
    limit 1

),

state as (

    select * from {{ source('raw', 'pipeline_state') }}

),

totals as (

    select
        max(newest_load_at) as newest_load_at,
        (array_agg(sent_to_landed order by newest_load_at desc nulls last))[1] as sent_to_landed,
        max(landed_to_analytics) as landed_to_analytics,
        sum(untransformed)::bigint as untransformed,
        sum(received)::bigint as received,
        sum(landed)::bigint as landed,
        sum(duplicates)::bigint as duplicates,
        sum(accepted)::bigint as accepted,
        sum(rejected)::bigint as rejected,
        sum(erased)::bigint as erased,
        coalesce(sum(unaccounted) filter (where unaccounted > 0), sum(unaccounted))::bigint as unaccounted,
        sum(landed_week_before)::bigint as landed_week_before,
        sum(rejected_week_before)::bigint as rejected_week_before
    from queues

)

select
    now() as measured_at,
    totals.newest_load_at,
    totals.sent_to_landed,
    totals.landed_to_analytics,
    totals.untransformed,
    totals.received,
    totals.landed,
    totals.duplicates,
    totals.accepted,
    totals.rejected,
    totals.erased,
    totals.unaccounted,
    totals.landed_week_before,
    totals.rejected_week_before,
    reasons.rejected_by_reason,
    newest_login.mask_key_version,
    state.rotation_is_open,
    state.sequence_is_behind
from totals
cross join reasons
cross join state
left join newest_login on true
